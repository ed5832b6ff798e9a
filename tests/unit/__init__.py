"""Modules one by one."""
