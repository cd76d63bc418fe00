"""The stages of adapt(), a module each: functions that take what earlier stages made."""
