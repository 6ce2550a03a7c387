"""Every task by name, one file per family."""

from . import digits, finetuning, language, mnist1d, pinn, regression, streaming, tables

FAMILIES = (streaming, language, mnist1d, tables, regression, finetuning, pinn, digits)

TASKS = {task.name: task for family in FAMILIES for task in family.TASKS}
