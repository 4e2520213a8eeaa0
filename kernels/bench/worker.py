"""The child side of `longrec.kernels.bench.workers`: does one job, writes a line of JSON for each result."""

import json
import sys

__all__ = ["main"]


def main(argument: str) -> None:
    """Do the job that the argument, JSON, describes."""
    job = json.loads(argument)
    if job["job"] == "compile":
        from longrec.kernels.bench.compiling import compile_share

        for result in compile_share(job["targets"], job["subset"], job["share"], job["shares"]):
            print(json.dumps(result), flush=True)
    else:
        from longrec.kernels.bench.counts import count_share

        for counted in count_share(job["subset"], job["share"], job["shares"]):
            print(json.dumps(counted), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
