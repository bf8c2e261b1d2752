"""What each page and list of the console costs with 100,000 devices, while these report. `make bench-console`."""
