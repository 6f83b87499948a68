"""Errors that a user can mend: one line says what is wrong, and what to do."""


class EtameterError(Exception):
    """Base of every error that ends a command with one line and exit code 2."""

    exit_code = 2

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}: {remedy}")
        self.message = message
        self.remedy = remedy


class ConfigError(EtameterError):
    """An option, a config key or an environment variable is not usable."""


class CounterError(EtameterError):
    """No energy counter can be read. `cause` is from a closed set and serves as a label value."""

    def __init__(self, cause: str, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.cause = cause


class EngineError(EtameterError):
    """The inference server can't be started or used."""


class NodeError(EtameterError):
    """The sampler of another machine can't be reached or trusted, or this one can't be read from another."""


class MeterBusy(EtameterError):
    """Another meter already owns the socket or the port."""


class SampleError(EtameterError):
    """Samples from which no η follows."""


class ArmError(EtameterError):
    """An arm's file is missing, or is not one."""


class SuiteError(EtameterError):
    """A suite, a task or what is brought as one is not usable."""


class ExperimentError(EtameterError):
    """A comparison of arms can't be planned, run, resumed or read."""


class NightError(EtameterError):
    """A night can't be planned, run, resumed or read."""


class ArchiveError(EtameterError):
    """Days of the ledger can't be archived, or the archive can't be read."""


class FootprintError(EtameterError):
    """Money or CO2 is asked for with factors that are missing, unknown or contradict each other."""


class InputError(EtameterError):
    """An input of the documents' arithmetic is unknown, of another unit, or out of its range."""
