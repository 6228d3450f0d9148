"""``python -m pipelines.pod``: what entrypoints/runpod.sh hands its arguments to."""

import sys

from pipelines.pod.supervisor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
