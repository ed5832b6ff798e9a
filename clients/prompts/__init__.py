"""From the prompts a person has to requests that can be sent: reading, checking, planning the shards."""
