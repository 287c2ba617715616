"""The config as an object: a locked ConfigDict whose mistakes are lines for the user."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict, config_dict

from bsq_jax.config.declaration import Setting
from bsq_jax.config.settings import SECTIONS, TOP, declared
from bsq_jax.config.suggestions import did_you_mean
from bsq_jax.config.values import wanted
from bsq_jax.core.errors import UserError


class SettingError(UserError):
    """A mistake in an assignment to a config, which names no place in a file."""


class UnknownSettingError(SettingError, AttributeError, KeyError):
    """A setting that does not exist; also what Python expects of an attribute and of a key.

    Attributes:
      key: as it was written, without its group.
    """

    __str__ = Exception.__str__  # that of KeyError would quote the line

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class WrongTypeError(SettingError, TypeError):
    """A value that is not of the setting's type."""


class Config(ConfigDict):
    """A config, and each group of settings in one.

        config.train.steps = 300
        config["train.steps"] = 300  # the same

    Raises:
      UserError: a setting that does not exist was asked for or set, or set to a value of another
        type. `hasattr` and ``in`` work as ever.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise _cause(error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except AttributeError as error:
            raise _cause(error) from None

    def __getitem__(self, key: str) -> Any:
        try:
            return super().__getitem__(key)
        except UnknownSettingError:  # of the group in a dotted key
            raise
        except KeyError:
            if key.startswith("_"):  # what Python looks for in any object
                raise
            raise self._unknown(key) from None

    def __setitem__(self, key: str, value: Any) -> None:
        group, dot, rest = key.partition(".")
        if dot:
            self[group][rest] = value
            return
        if self.is_locked and key not in self:
            raise self._unknown(key)
        try:
            super().__setitem__(key, value)
        except TypeError:
            raise self._wrong_type(key, value) from None

    def _prefix(self) -> str:
        """``train.`` if this is the group of that name; groups are told apart by their keys."""
        names = [name for name, group in SECTIONS.items() if group.keys() == set(self.keys())]
        return f"{names[0]}." if names else ""

    def _unknown(self, key: str) -> UnknownSettingError:
        dotted = self._prefix() + key
        return UnknownSettingError(f"config.{dotted} does not exist{did_you_mean(dotted)}", key)

    def _wrong_type(self, key: str, value: Any) -> WrongTypeError:
        dotted = self._prefix() + key
        if isinstance(self[key], ConfigDict):
            inside = ", ".join(f"{dotted}.{name}" for name in self[key])
            return WrongTypeError(f"config.{dotted} is a group of settings: set one of {inside}")
        setting = declared().get(dotted)
        free = setting is not None and setting.any_length
        what = wanted(self.get_type(key), self[key], any_length=free)
        optional = " or None" if setting is not None and setting.optional else ""
        return WrongTypeError(f"config.{dotted} is {value!r}: it must be {what}{optional}")


def _cause(error: AttributeError) -> Exception:
    """What ConfigDict has made an AttributeError of, if that has a better line."""
    found = error.args[0] if error.args else None
    return found if isinstance(found, UnknownSettingError) else error


def default_config() -> ConfigDict:
    """A locked config with the default of every setting."""
    config = Config({key: _initial(setting) for key, setting in TOP.items()})
    for name, section in SECTIONS.items():
        config[name] = Config({key: _initial(setting) for key, setting in section.items()})
    return config.lock()


def _initial(setting: Setting) -> Any:
    if setting.kind is None:
        return setting.default
    return config_dict.FieldReference(setting.default, field_type=setting.kind)
