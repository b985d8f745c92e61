pytest_plugins = ["t2iedit.testing"]
