"""Webhooks of upstream systems: each one has the sources of its sender polled, and says nothing else."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Header, Request

from ipnext.api.dependencies import PlatformAdapters, Rooms
from ipnext.api.schema import OF_SHARED
from ipnext.errors import Unauthenticated
from ipnext.model.api.sources import WebhookTaken
from ipnext.sources.credentials import read_credentials
from ipnext.sources.mlflow.webhooks import find_sender, is_fresh

router = APIRouter(prefix="/v1/webhooks", tags=["sources"])

SETTING: Final = "IPNEXT_SOURCE_WEBHOOKS_FILE"

Delivery = Annotated[str, Header(alias="X-MLflow-Delivery-Id", max_length=200)]
Timestamp = Annotated[str, Header(alias="X-MLflow-Timestamp", max_length=20)]
Signature = Annotated[str, Header(alias="X-MLflow-Signature", max_length=200)]


@router.post("/mlflow", status_code=202, summary="Take a webhook of MLflow", responses=OF_SHARED)
async def take_mlflow(
    request: Request, rooms: Rooms, delivery: Delivery = "", timestamp: Timestamp = "", signature: Signature = ""
) -> WebhookTaken:
    """Have the sources of the MLflow server that signed this polled soon; its content is not read.

    401 unless it was signed within the last five minutes with a secret of IPNEXT_SOURCE_WEBHOOKS_FILE.
    """
    now = datetime.now(UTC)
    secrets = await asyncio.to_thread(_secrets, rooms.settings.source_webhooks_file)
    if not secrets or not signature or not is_fresh(timestamp, now):
        raise _unsigned()
    body = await request.body()
    sender = find_sender(secrets, delivery=delivery, timestamp=timestamp, signature=signature, body=body, now=now)
    if sender is None:
        raise _unsigned()
    await asyncio.to_thread(_wake, rooms, sender)
    rooms.source_wakes.wake()
    return WebhookTaken(upstream=sender)


def _unsigned() -> Unauthenticated:
    msg = f"this webhook is not signed with a secret of {SETTING}, or is older than five minutes"
    return Unauthenticated(msg)


def _secrets(file: Path | None) -> dict[str, str]:
    return dict(read_credentials(file, SETTING))


def _wake(rooms: PlatformAdapters, sender: str) -> None:
    with rooms.store.begin_free(()) as unit:
        unit.mark_unsent("mlflow", sender.rstrip("/"))
