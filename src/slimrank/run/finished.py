"""Recognising a finished run: it is recorded before its result is written, and found when the command is repeated."""

from dataclasses import replace
from pathlib import Path

from slimrank.checkpoint import check_free
from slimrank.checkpoint.account import FILE as ACCOUNT
from slimrank.checkpoint.account import Account
from slimrank.model.load import Loaded, load
from slimrank.plan import Plan
from slimrank.run.result import PLAN, Result
from slimrank.run.resume import WRITTEN
from slimrank.runtime.digests import sha256_of, sha256_of_text
from slimrank.spectrum.curve import Curve
from slimrank.store.pieces import Pieces


def note(pieces: Pieces, result: Result, account: Account) -> None:
    """Record the digest of this run's account, which no other run has, since the account holds the run's timings."""
    values = {name: curve.values for name, curve in result.curves.items()}
    facts = {"account": sha256_of_text(account.to_json()), "parameters": result.parameters, "seconds": result.seconds}
    pieces.save(WRITTEN, values, facts)


def finished(pieces: Pieces, out: Path, dense: Loaded, *, overwrite: bool, device: str) -> Result | None:
    """The result in `out`, loaded, if an earlier process of this run wrote it and was then killed; None otherwise.

    Raises:
        UsageError: if `out` holds something else and `overwrite` is False.
    """
    if WRITTEN not in pieces:
        return None
    values, facts = pieces.load(WRITTEN)
    if not (out / ACCOUNT).is_file() or sha256_of(out / ACCOUNT) != facts["account"]:
        check_free(out, overwrite)
        return None
    plan = Plan.load(out / PLAN)
    curves = {name: Curve(values[name]) for name in plan.linears if name in values}
    loaded = load(str(out), dtype=str(dense.model.dtype).removeprefix("torch."), device=device)
    before, after = facts["parameters"]
    account = Account.load(out)
    return Result(
        replace(loaded, name=dense.name),
        plan,
        curves,
        (before, after),
        facts["seconds"],
        account.calibration,
        account.held_out,
    )
