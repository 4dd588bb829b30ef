from lohan_plugin_template.plugin import PLAIN_FILES

from lohan_core.testing.storage import StorageSuite


class TestPlainFiles(StorageSuite):
    backend = PLAIN_FILES
