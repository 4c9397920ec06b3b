"""Makes metric families of prometheus_client from plain numbers."""

from collections.abc import Iterable, Mapping
from math import inf

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from server.observability.histogram import Histogram

PREFIX = "conversations_"
Labels = tuple[str, ...]


def gauge(name: str, description: str, value: float) -> Metric:
    """Returns a gauge."""
    return GaugeMetricFamily(PREFIX + name, description, float(value))


def info(name: str, description: str, labels: Mapping[str, str]) -> Metric:
    """Returns a gauge of the value 1 whose labels carry information."""
    family = GaugeMetricFamily(PREFIX + name, description, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), 1)
    return family


def count(name: str, description: str, value: float) -> Metric:
    """Returns a counter."""
    return CounterMetricFamily(PREFIX + name, description, value)


def counts(name: str, description: str, label: str, values: Mapping[str, float]) -> Metric:
    """Returns a counter with a label."""
    return counts_by(PREFIX + name, description, (label,), (((value,), number) for value, number in values.items()))


def counts_by(name: str, description: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    """Returns a counter with several labels; ``name`` is the full name."""
    family = CounterMetricFamily(name, description, labels=labels)
    for words, number in values:
        family.add_metric(words, number)
    return family


def histogram(name: str, description: str, values: Histogram) -> Metric:
    """Returns a histogram without labels."""
    return histograms_by(PREFIX + name, description, (), (((), values),))


def histograms_by(name: str, description: str, labels: Labels, values: Iterable[tuple[Labels, Histogram]]) -> Metric:
    """Returns a histogram with labels; ``name`` is the full name."""
    family = HistogramMetricFamily(name, description, labels=labels)
    for words, of in values:
        buckets = [("+Inf" if bound == inf else str(bound), number) for bound, number in of.up_to()]
        family.add_metric(words, buckets, of.total)
    return family
