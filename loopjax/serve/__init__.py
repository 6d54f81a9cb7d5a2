"""The report's page, live: a server for one person on one machine."""
