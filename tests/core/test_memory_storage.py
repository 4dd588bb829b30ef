from typing import ClassVar

from lohan_core.reference.memory_storage import MEMORY
from lohan_core.testing.storage import StorageSuite


class TestMemoryStorage(StorageSuite):
    backend = MEMORY
    deviations: ClassVar[dict[str, str]] = {
        "test_reopen_finds_the_bytes": "memory does not survive closing",
        "test_failed_io_surfaces_from_wait": "copying memory cannot fail",
    }
