"""Thin: everything it says is read from settings.ini."""
from configparser import ConfigParser
from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
s = config["DEFAULT"]
extras = {k.removesuffix("_requirements"): s[k].split() for k in s if k.endswith("_requirements")}
setup(
    name=s["lib_name"], version=s["version"], description=s["description"], author=s["author"], license="Apache-2.0", url=s["git_url"],
    packages=[s["lib_name"]], package_data={s["lib_name"]: ["data/*", "data/*/*"]}, python_requires=">=" + s["min_python"],
    install_requires=s["requirements"].split(), extras_require=extras | {"dev": [*extras["dev"], *extras["cluster"], *extras["s3"], *extras["watch"]]},
    entry_points={"console_scripts": s["console_scripts"].split(), "papermill.engine": s["papermill_engines"].split()},
)
