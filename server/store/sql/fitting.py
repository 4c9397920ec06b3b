"""Which rows of a page fit into one message: the first ones, in the order of the page."""

from typing import Any, TypeAlias

from sqlalchemy import BigInteger, ColumnElement, Integer, and_, bindparam, case, func, literal_column, or_

Order: TypeAlias = ColumnElement[Any] | tuple[ColumnElement[Any], ...]

PAGE_BYTES: ColumnElement[int] = bindparam("page_bytes", type_=BigInteger)


def fit_in_order(
    size: ColumnElement[int],
    order: Order,
    most: ColumnElement[int] = PAGE_BYTES,
    first: ColumnElement[bool] | None = None,
) -> ColumnElement[bool]:
    """Whether the sizes up to a row, in ``order``, are at most ``most`` together.

    The first row fits always, or under the condition ``first``.
    """
    total = func.sum(size).over(order_by=order, rows=(None, 0))
    is_first = total == size
    return or_(total <= most, is_first if first is None else and_(is_first, first))


def told_body(page: Any, order: Order) -> ColumnElement[bytes]:
    """The column ``body`` of changes of items; NULL from where bodies would have more than ``page_bytes`` together.

    The first may be as large as ``large_bytes``; one above that is NULL, never read, and does not count.
    """
    large: ColumnElement[int] = bindparam("large_bytes", type_=Integer)
    counted = case((page.size <= large, page.size), else_=literal_column("0", Integer))
    return case((and_(page.size <= large, fit_in_order(counted, order)), page.body)).label("body")
