"""What the conformance suites share: programs under test, certificates, an origin, and how a case is told and judged."""
