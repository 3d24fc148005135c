"""Methods: a loss and its LightningModule per file.

A class called ``...Module`` in a file of this folder is a public name of the package; nothing has to be registered.
"""
