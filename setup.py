"""What pyproject.toml cannot say: conf/ stays at the top of the repository and lies in the wheel as ghm/conf."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib, "ghm", "conf"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithConf})
