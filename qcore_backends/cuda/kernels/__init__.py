"""The kernels themselves: functions that Triton compiles, or interprets."""
