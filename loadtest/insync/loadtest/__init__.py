"""Load tests of a server: paced live streams, dubbing jobs and registrations, their metrics, and reports."""
