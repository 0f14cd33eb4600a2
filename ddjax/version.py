"""The version of the package. Its metadata, `ddjax.__version__` and the configurations of runs read it here."""

__version__ = "0.1.0"
