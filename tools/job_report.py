#!/usr/bin/env python3
"""What scripts want to know of a finished job (`gla train get JOB --output=json`).

usage: job_report.py checkpoint JOB.json                 its directory
       job_report.py bits JOB.json                       validation bits per byte
       job_report.py compression JOB.json TEXT DATASET   beside xz and gzip
"""
import json
import subprocess
import sys


def compression_table(bits_per_byte, text_path, dataset):
    with open(f"{dataset}/manifest.json") as f:
        splits = {split["name"]: split for split in json.load(f)["splits"]}
    with open(text_path, "rb") as f:
        held_out = f.read()[-int(splits["validation"]["textBytes"]):]
    print(f"bits per byte on the {len(held_out)} held-out bytes")
    print(f"  {'model':<11} {bits_per_byte:.3f}")
    for command in ["xz", "-9"], ["gzip", "-9"]:
        packed = subprocess.run(command, input=held_out, stdout=subprocess.PIPE,
                                check=True).stdout
        print(f"  {' '.join(command):<11} {8 * len(packed) / len(held_out):.3f}")


what, job_path = sys.argv[1:3]
with open(job_path) as f:
    job = json.load(f)
if what == "checkpoint":
    print(job["latest_checkpoint"])
elif what == "bits":
    print(f"{job['progress']['evaluation_bits_per_byte']:.4f}")
elif what == "compression":
    compression_table(job["progress"]["evaluation_bits_per_byte"], *sys.argv[3:5])
else:
    sys.exit(__doc__)
