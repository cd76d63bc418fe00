"""Files written whole, locks, messages, checks of what users give, several processes."""
