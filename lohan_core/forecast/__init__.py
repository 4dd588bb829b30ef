"""What a run will be like, before it runs: the step's length and what bounds it, memory, wear, better settings."""

from lohan_core.forecast.advise import BatchAdvice, recommend_batch
from lohan_core.forecast.case import Case
from lohan_core.forecast.family import largest_that_fits
from lohan_core.forecast.forecast import Forecast, forecast_plan

__all__ = ["BatchAdvice", "Case", "Forecast", "forecast_plan", "largest_that_fits", "recommend_batch"]
