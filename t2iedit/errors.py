"""What can go wrong, as one tree.

T2IEditError
├── UserError (also ValueError)      something a user can put right; the command line exits with 2
│   ├── SpanNotFound                 a phrase that is not in the prompt
│   │   └── SpanTruncated            a phrase that the text encoder's window cuts off
│   ├── UnknownEdit                  no installed plugin has an edit of that name
│   ├── InvalidOptions               an option that is unknown, missing or out of range
│   ├── EditNotSupported             an edit that this model, prompt or request cannot have
│   ├── InvalidRequest               a size, seed, guidance or number of steps that cannot be
│   ├── ModelNotUsable               a checkpoint that is missing, broken or of a foreign kind
│   ├── LoraNotUsable                a LoRA file that cannot be read, or does not fit the model
│   ├── RecipeNotUsable              an image without a recipe, or with one that cannot be read
│   ├── ConditioningNotUsable        a conditioning that is damaged, or of other encoders than the model's
│   └── OutputNotWritable            a file or folder that cannot be written
└── PluginError                      a plugin that breaks its contract, or two with one name
"""

import textwrap


def said(error: BaseException, most: int = 200) -> str:
    """What a library's error says, on one line and not without end."""
    return textwrap.shorten(str(error), most, placeholder=" ...") or type(error).__name__


class T2IEditError(Exception):
    """The root of all errors that t2iedit raises on purpose."""


class UserError(T2IEditError, ValueError):
    """Says in one sentence what was given, what was expected and what to do."""


class SpanNotFound(UserError):
    """The phrase does not stand in the prompt."""


class SpanTruncated(SpanNotFound):
    """The phrase stands in the prompt, but past the encoder's last token."""


class UnknownEdit(UserError):
    """No installed plugin registers an edit of this name."""


class InvalidOptions(UserError):
    """An option is unknown, missing, of the wrong type or out of range."""


class EditNotSupported(UserError):
    """An edit cannot act on this model, prompt or request."""


class InvalidRequest(UserError):
    """A request asks for what no model, or not this one, can make."""


class ModelNotUsable(UserError):
    """A checkpoint cannot be found, read or understood."""


class LoraNotUsable(UserError):
    """A LoRA file cannot be read, or does not fit the model."""


class RecipeNotUsable(UserError):
    """An image holds no recipe, or one that cannot be repeated."""


class ConditioningNotUsable(UserError):
    """A conditioning cannot be read, or was made by other encoders."""


class OutputNotWritable(UserError):
    """A picture cannot be saved where it was asked for."""


class PluginError(T2IEditError):
    """A plugin breaks the contract of `t2iedit.Edit`, or claims a name that is taken."""
