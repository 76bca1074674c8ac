"""Load for a server: paced live streams, dubbing jobs and registrations, what they measure, and reports of it."""
