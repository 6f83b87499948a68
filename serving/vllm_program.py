"""vLLM's own program, also where vLLM is installed under another name: it looks for a distribution called vllm, and that of the build for CPUs is called otherwise.

python -m etameter.serving.vllm_program serve MODEL …
"""

import importlib.metadata

from . import cpu_engine


def main() -> None:
    """Raises SystemExit, as vLLM's own program."""
    known = importlib.metadata.version
    installed = cpu_engine.installed_version()

    def version(distribution_name: str) -> str:
        return installed if installed and distribution_name == "vllm" else known(distribution_name)

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as program

    program()


if __name__ == "__main__":
    main()
