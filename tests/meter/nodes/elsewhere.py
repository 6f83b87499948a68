"""`etameter` on a machine whose clock began at another time, in a process of this one.

    python -m tests.meter.nodes.elsewhere OFFSET_NS PPM BOOT_ID sampler --listen …

Its CLOCK_MONOTONIC shows OFFSET_NS more than this machine's, and runs PPM faster.
"""

import sys
import time

if __name__ == "__main__":
    offset_ns, ppm, boot_id = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    own_ns = time.monotonic_ns
    began_ns = own_ns()

    def monotonic_ns() -> int:
        now_ns = own_ns()
        return now_ns + offset_ns + (now_ns - began_ns) * ppm // 1_000_000

    time.monotonic_ns = monotonic_ns

    from etameter.serving import ring

    ring.boot_id = lambda: boot_id

    from etameter import cli

    cli.main(sys.argv[4:])
