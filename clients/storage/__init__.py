"""One way to read an input and to keep files: on this machine, in an object store or, read only, behind an address.

A write is all or nothing: on a disk it goes aside, is synced and renamed; in an object store it is a single put.
"""

from clients.storage.addresses import is_uri, shown
from clients.storage.folder import Folder
from clients.storage.inputs import open_input
from clients.storage.refused import reason, refusals

__all__ = ["Folder", "is_uri", "open_input", "reason", "refusals", "shown"]
