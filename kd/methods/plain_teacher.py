"""Methods with a frozen teacher."""

from typing import TYPE_CHECKING, cast

from kd.methods.base import Method, MethodContext

if TYPE_CHECKING:
    from kd.models.teacher import Teacher


class PlainTeacherMethod(Method):
    """A method that learns from a frozen teacher p(·|x)."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.teacher = cast("Teacher", context.teacher)
