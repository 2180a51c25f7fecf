"""The GPU library alone, without a runtime: its self-test and its timings."""
