"""The comparison behind `perf/run`: processes, servers under test, workloads, measuring, the report."""
