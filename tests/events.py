"""Something happens in the middle of a step: a kill, a signal, a weight that becomes NaN."""

import contextlib

import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook


@contextlib.contextmanager
def before_update(event):
    """Call `event(optimizer, update)` before each update of an optimizer, by torch's own hook, with
    the updates counted from 1 as AdamW's state counts them (through resumes, too)."""

    def hook(optimizer, *_):
        made = [int(state["step"]) for state in optimizer.state.values()]
        event(optimizer, max(made, default=0) + 1)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def dying_at(step):
    """The run inside dies in the middle of that step, as from a kill."""

    def die(_, update):
        if update == step:
            raise KeyboardInterrupt

    with before_update(die), pytest.raises(KeyboardInterrupt):
        yield
