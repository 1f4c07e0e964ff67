"""The pure parts of the harness: reading wrk, ratios, verdicts. Run: python3 -m unittest discover -s perf -t perf"""

import unittest
from dataclasses import replace

from harness import report, workloads
from harness.measure import Sample, parse_h2load, parse_wrk
from harness.procs import Failed

WRK = """Running 1s test @ https://localhost:4433/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.51ms    1.90ms  23.35ms   86.47%
    Req/Sec    17.42k     2.31k   20.01k    70.00%
  Latency Distribution
     50%  850.00us
     75%    2.98ms
     90%    4.58ms
     99%    1.05s 
  17375 requests in 1.00s, 21.77MB read
Requests/sec:  17340.12
Transfer/sec:     21.73MB
"""

H2LOAD = """starting benchmark...
finished in 2.00s, 10200.46 req/s, 10.39MB/s
requests: 20000 total, 20512 started, 20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 20000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 20.37MB (21362655) total, 509.45KB (521679) headers (space savings 85.43%), 19.53MB (20480000) data
                     min         max         mean         sd        +/- sd
time for request:     2.92ms    198.87ms     47.58ms     25.75ms    83.76%
time for connect:     5.56ms     18.75ms     10.78ms      4.64ms    56.25%
"""

WORKLOAD = replace(workloads.BY_NAME["full-p256"], of_nginx=(0.45, 0.42), of_baseline=(0.90, 0.85))


def results(**figures):
    """Results of one workload: server=[figure of each round, None where it failed]."""
    found = report.Results(list(figures), 3)
    for server, rounds in figures.items():
        for figure in rounds:
            if figure is None:
                found.fail(WORKLOAD, server, "did not start")
            else:
                found.add(WORKLOAD, server, Sample(figure=figure))
    return found


class Wrk(unittest.TestCase):
    def test_counts_and_units(self):
        said = parse_wrk(WRK)
        self.assertEqual((said["ops"], said["errors"]), (17375, 0))
        self.assertEqual((said["p50_us"], said["p99_us"]), (850.0, 1_050_000.0))
        self.assertEqual(said["per_second"], 17340.12)

    def test_every_kind_of_error_counts(self):
        trouble = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"
        self.assertEqual(parse_wrk(WRK.replace("Requests/sec", trouble + "Requests/sec"))["errors"], 15)

    def test_no_answer_is_a_failure(self):
        for text in ("", "unable to connect to localhost:1 Connection refused", WRK.replace("17375", "0")):
            with self.assertRaises(Failed):
                parse_wrk(text)


class H2load(unittest.TestCase):
    def test_counts_and_units(self):
        said = parse_h2load(H2LOAD)
        self.assertEqual(said, {"ops": 20000, "errors": 0, "max_us": 198_870.0, "mean_us": 47_580.0})

    def test_other_answers_and_failures_are_errors(self):
        text = H2LOAD.replace("0 failed", "7 failed").replace("0 errored", "5 errored").replace("0 5xx", "3 5xx")
        self.assertEqual(parse_h2load(text)["errors"], 5)

    def test_no_answer_is_a_failure(self):
        for text in ("", H2LOAD.replace("20000 succeeded", "0 succeeded")):
            with self.assertRaises(Failed):
                parse_h2load(text)


class Ratios(unittest.TestCase):
    def test_rounds_are_compared_with_themselves(self):
        # The machine became twice as slow in the last round: the ratio did not.
        found = results(hostward=[40, 40, 80], nginx=[100, 100, 200])
        self.assertAlmostEqual(found.ratio(WORKLOAD, "nginx"), 0.40)

    def test_a_failed_round_shifts_no_other(self):
        found = results(hostward=[40, None, 80], nginx=[100, 100, 200])
        self.assertAlmostEqual(found.ratio(WORKLOAD, "nginx"), 0.40)
        self.assertIsNone(found.ratio(WORKLOAD, "baseline"))

    def test_targets(self):
        found = results(hostward=[46, 46, 46], nginx=[100, 100, 100], baseline=[60, 60, 60])
        self.assertEqual(found.missed([WORKLOAD]), [("full-p256", "hostward", "nginx")])
        page = report.markdown(found, [WORKLOAD], "title", ["fact"])
        self.assertIn("0.46 (at most 0.45: **missed**)", page)
        self.assertIn("0.77 (at most 0.90: met)", page)

    def test_a_ratio_equal_to_its_target_is_met(self):
        found = results(hostward=[45, 45, 45], nginx=[100, 100, 100])
        self.assertEqual(found.missed([WORKLOAD]), [])

    def test_failures_are_on_the_page(self):
        page = report.markdown(results(hostward=[None]), [WORKLOAD], "title", [])
        self.assertIn("FAILED: full-p256, hostward: did not start", page)

    def test_what_did_not_resume_is_on_the_page(self):
        found = report.Results(["nginx"], 1)
        found.add(WORKLOAD, "nginx", Sample(figure=1, ops=100, not_resumed=2))
        self.assertIn("2 of 100 handshakes did not resume", report.markdown(found, [WORKLOAD], "title", []))
        self.assertTrue(found.spoiled([WORKLOAD]))

    def test_what_spoils_a_run(self):
        self.assertFalse(results(nginx=[1, 1, 1]).spoiled([WORKLOAD]))
        self.assertTrue(results(nginx=[1, None, 1]).spoiled([WORKLOAD]))
        found = report.Results(["nginx"], 1)
        found.add(WORKLOAD, "nginx", Sample(figure=1, ops=100, errors=1))
        self.assertTrue(found.spoiled([WORKLOAD]))


if __name__ == "__main__":
    unittest.main()
