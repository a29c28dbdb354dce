"""Optimisers."""
from .blocks import DimensionNumbers, make_plan, treatment_table
from .soap import scale_by_soap, soap, SoapState
