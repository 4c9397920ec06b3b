"""Imports the conversations of a Llama Stack or OGX (`server.cli.ogx_database`)."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
from conversations.v1 import conversation_pb2, item_pb2
from conversations.v1 import transfer_service_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from server.cli.ogx_database import OgxDatabase, OgxItem, Row, decoded
from server.cli.transfer import ImportResult, import_records
from server.errors import FieldInvalid, OperatorError
from server.items import ItemJsonError
from server.items.codec import from_json
from server.services.import_blocks import BlockCutter
from server.store.checksum import add_block, digest_of_head, kept_head

_MAX_ITEM_BYTES = 2**31 - 1  # the service knows its own limit


class _Unfit(Exception):
    """A conversation that cannot be one here; the text says why."""


@dataclass
class OgxReport:
    """What was found, and what became of it.

    Attributes:
        tied_items: That have the place of the item before: the store does not say which came first.
        orphans: Items whose conversation is gone.
    """

    conversations: int = 0
    items: int = 0
    tied_items: int = 0
    tied_conversations: int = 0
    orphans: int = 0
    result: ImportResult = field(default_factory=ImportResult)

    def lines(self) -> Iterator[str]:
        """Yields the report, for people."""
        yield f"conversations read   {self.conversations}"
        yield f"  imported           {self.result.created}"
        yield f"  there already      {self.result.present}"
        yield f"  refused            {len(self.result.refused)}"
        yield f"items read           {self.items}"
        yield f"  of the same place  {self.tied_items}, in {self.tied_conversations} conversations"
        yield f"  of none            {self.orphans}"


def import_ogx(
    channel: grpc.Channel, database: OgxDatabase, tenant: str | None, owners: Mapping[str, str]
) -> OgxReport:
    """Imports all conversations of a database.

    Args:
        channel: To the service.
        database: That of OGX.
        tenant: Of the conversations there; None if all are of one.
        owners: The new ids of owners.

    Raises:
        OperatorError: There are several tenants, and none is named.
    """
    tenants = database.tenants()
    if tenant is None and len(tenants) > 1:
        raise OperatorError(f"--tenant: needed, for the conversations are of {len(tenants)} tenants.")
    report = OgxReport(orphans=database.count_orphans())
    refused: dict[str, str] = {}
    seen: set[str] = set()

    def records(answered: Collection[str]) -> Iterator[pb.Record]:
        for row in database.conversations(tenant):
            if row["id"] in answered or row["id"] in refused:
                continue
            items = database.items(row["id"])
            if row["id"] not in seen:
                seen.add(row["id"])
                _count(report, items)
            try:
                found = list(_records(row, items, owners))
            except _Unfit as unfit:
                refused[row["id"]] = str(unfit)
                continue
            yield from found

    report.result = import_records(channel, records)
    report.result.refused += [f"{name}: {why}" for name, why in refused.items()]
    return report


def _count(report: OgxReport, items: list[OgxItem]) -> None:
    ties = sum(one.key == other.key for one, other in pairwise(items))
    report.conversations += 1
    report.items += len(items)
    report.tied_items += ties
    report.tied_conversations += ties > 0


def _records(row: Row, items: list[OgxItem], owners: Mapping[str, str]) -> Iterator[pb.Record]:
    """Yields the records of a conversation.

    Raises:
        _Unfit: It cannot be one here.
    """
    head = _head(row, len(items), owners)
    digest, cutter = digest_of_head(kept_head(head)), BlockCutter(0, len(items), _MAX_ITEM_BYTES)
    yield pb.Record(conversation=head)
    messages = [_message(number, item, owners) for number, item in enumerate(items, 1)]
    try:
        blocks = [*cutter.add(messages), *cutter.rest()]
    except FieldInvalid as invalid:
        raise _Unfit(str(invalid)) from None
    for block in blocks:
        digest = add_block(digest, block.wire)
        yield pb.Record(items=pb.Record.Items.FromString(block.wire))
    yield pb.Record(end=pb.Record.End(item_count=len(items), digest=digest))


def _head(row: Row, count: int, owners: Mapping[str, str]) -> conversation_pb2.Conversation:
    owner, created = row.get("owner_principal") or "", Timestamp(seconds=row["created_at"] or 0)
    try:
        return conversation_pb2.Conversation(
            id=row["id"],
            create_time=created,
            update_time=created,
            owner=owners.get(owner, owner),
            metadata=_metadata(decoded(row.get("metadata"))),
            attributes=_attributes(decoded(row.get("access_attributes"))),
            last_sequence=count,
        )
    except (TypeError, ValueError, AttributeError):
        raise _Unfit("its columns are not those of a conversation") from None


def _metadata(found: Any) -> dict[str, str]:
    """Returns the pairs that have a value."""
    return {name: value for name, value in (found or {}).items() if value is not None}


def _attributes(found: Any) -> dict[str, conversation_pb2.AttributeValues]:
    """Returns the attributes that have values."""
    lists = {name: values for name, values in (found or {}).items() if values}
    return {name: conversation_pb2.AttributeValues(values=sorted(set(values))) for name, values in lists.items()}


def _message(sequence: int, item: OgxItem, owners: Mapping[str, str]) -> item_pb2.Item:
    if not isinstance(item.data, dict):
        raise _Unfit(f"item {item.id}: is no JSON object")
    try:
        message = from_json(item.data)
    except ItemJsonError as error:
        raise _Unfit(f"item {item.id}: {error}") from None
    message.id = item.id
    message.sequence = sequence
    message.create_time.seconds = item.created_at
    message.created_by = owners.get(item.owner, item.owner)
    return message


def read_owners(file: Path) -> dict[str, str]:
    """Returns the new ids of owners, of lines ``old=new``; empty lines and those with # in front say nothing.

    Raises:
        OperatorError: A line is none of those; the text names it.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        old, equals, new = line.partition("=")
        if not (old and equals and new) or old in found:
            raise OperatorError(f"--map-owner: line {number} is not old=new, or names an owner again.")
        found[old] = new
    return found
