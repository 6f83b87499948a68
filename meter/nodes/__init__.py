"""One engine over several machines: their counters, and their clocks."""
