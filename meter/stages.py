"""Where in a pipeline of GPUs a step was at what time, told from its dispatch and its end alone.

With pipeline parallelism the layers of a model are spread over stages, each a GPU or some, and several steps are in flight at once: while the last
stage works on step k, the first works on a later one. A step passes the stages in turn and waits where one is still at work on the step before it,
so that its end is

    done = max over stages s of  (free(s) + (stages - s)·τ),   free(0) no earlier than its dispatch

where free(s) is when stage s ended the step before, and τ the step's time on a stage, taken to be alike on all of them because engines spread the
layers evenly. That is solved for τ, step by step; the spans follow. One stage alone gives what asynchronous scheduling needs: a step begins no earlier
than the one before it ended.
"""

Span = tuple[int, int]
"""Start and end, ns."""


class Pipeline:
    """Follows the steps of one engine in the order in which they end."""

    def __init__(self, stages: int, since_ns: int) -> None:
        """No stage worked before `since_ns`."""
        self._free_ns = [since_ns] * stages

    def idle_until(self, t_ns: int) -> None:
        """Nothing is known of what ran before `t_ns`: whatever comes began later."""
        self._free_ns = [max(free_ns, t_ns) for free_ns in self._free_ns]

    def passed(self, dispatch_ns: int, done_ns: int) -> list[Span]:
        """When each stage worked on the step; on a stage the spans of steps are disjoint, and the last one's end with the step."""
        free_ns = self._free_ns
        begin_ns = max(dispatch_ns, free_ns[0])
        stages = len(free_ns)
        if stages == 1:
            self._free_ns = [end_ns := max(begin_ns, done_ns)]
            return [(begin_ns, end_ns)]
        bases_ns = [begin_ns, *free_ns[1:]]
        stage_ns = max(0, min((done_ns - base_ns) // (stages - stage) for stage, base_ns in enumerate(bases_ns)))
        spans = []
        for stage, base_ns in enumerate(bases_ns):
            begin_ns = max(begin_ns, base_ns)
            end_ns = begin_ns + stage_ns
            if stage == stages - 1:
                end_ns = max(begin_ns, done_ns)
            spans.append((begin_ns, end_ns))
            begin_ns = end_ns
        self._free_ns = [end_ns for _, end_ns in spans]
        return spans


def stage_of(position: int, gpus: int, stages: int) -> int:
    """Which stage the GPU at `position` works for, of an engine's `gpus` in the order of their ranks: those of a stage follow each other."""
    return position * stages // gpus
