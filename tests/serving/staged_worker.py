"""vLLM's worker for CPUs, for a pipeline of models that aren't compiled.

A later stage makes room for what it receives while its model is run for the first time, which this worker does to compile it, and not otherwise: then
vLLM 0.32 fails in the first step.
"""

from vllm.v1.worker.cpu_worker import CPUWorker


class Worker(CPUWorker):  # type: ignore[misc]  # vLLM isn't there where types are checked
    def determine_available_memory(self) -> int:
        self.model_runner.profile_run()
        return int(super().determine_available_memory())
