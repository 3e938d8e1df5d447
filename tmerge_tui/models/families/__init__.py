"""The layouts of decoder families, one small table a file. docs/families.md says how to add one."""
