"""Short names of well-known datasets: where they are on the Hugging Face hub, in which column, in which splits.

Streams, since most of them are larger than a disk. Written from their dataset cards; tested with local files in their
place, not against the hub.
"""

# PG-19 is a copy in parquet: the original is a script, which `datasets` has not run since its version 4.
NAMES = {
    "fineweb": "hf:HuggingFaceFW/fineweb?config=sample-10BT&split=train&field=text&streaming=1",
    "fineweb-edu": "hf:HuggingFaceFW/fineweb-edu?config=sample-10BT&split=train&field=text&streaming=1",
    "slimpajama": "hf:cerebras/SlimPajama-627B?split=train&validation=validation&field=text&streaming=1",
    "slimpajama-6b": "hf:DKYoon/SlimPajama-6B?split=train&validation=validation&field=text&streaming=1",
    "pg19": "hf:emozilla/pg19?split=train&validation=validation&field=text&streaming=1",
}
