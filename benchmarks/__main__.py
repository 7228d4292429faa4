"""Runs every benchmark in its short form; each has a longer one of its own."""

import shutil

from benchmarks import load, provider, search, service

if __name__ == "__main__":
    search.main(["--rows", "1000,100000", "--repeat", "21"], standalone_mode=False)
    service.main([], standalone_mode=False)
    if shutil.which("wrk"):
        load.main([], standalone_mode=False)
    provider.main()
