"""Families of samples in the words of prometheus_client, from plain numbers."""

from collections.abc import Iterable, Mapping
from math import inf

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from server.observability.histogram import Histogram

PREFIX = "conversations_"
Labels = tuple[str, ...]


def gauge(name: str, says: str, value: float) -> Metric:
    """A number that goes up and down."""
    return GaugeMetricFamily(PREFIX + name, says, float(value))


def info(name: str, says: str, labels: Mapping[str, str]) -> Metric:
    """Words, as labels of the number 1."""
    family = GaugeMetricFamily(PREFIX + name, says, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def count(name: str, says: str, value: float) -> Metric:
    """A number that only grows."""
    return CounterMetricFamily(PREFIX + name, says, value)


def counts(name: str, says: str, label: str, values: Mapping[str, float]) -> Metric:
    """A number that only grows, for each value of a label."""
    return counts_by(PREFIX + name, says, (label,), (((value,), number) for value, number in values.items()))


def counts_by(name: str, says: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    """As `counts`, with several labels and the whole name."""
    family = CounterMetricFamily(name, says, labels=labels)
    for words, number in values:
        family.add_metric(words, number)
    return family


def histogram(name: str, says: str, values: Histogram) -> Metric:
    """A histogram without labels."""
    return histograms_by(PREFIX + name, says, (), (((), values),))


def histograms_by(name: str, says: str, labels: Labels, values: Iterable[tuple[Labels, Histogram]]) -> Metric:
    """A histogram for each set of labels, under the whole name."""
    family = HistogramMetricFamily(name, says, labels=labels)
    for words, of in values:
        buckets = [("+Inf" if bound == inf else str(bound), number) for bound, number in of.up_to()]
        family.add_metric(words, buckets, of.total)
    return family
