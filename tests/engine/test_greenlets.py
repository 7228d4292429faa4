"""Plain functions on the event loop."""

import asyncio

from hyperfleet.engine import greenlets


def test_a_long_computation_that_breathes_lets_others_run() -> None:
    async def main() -> list[str]:
        order = []

        def compute() -> None:
            for _ in range(3):
                order.append("computed")
                greenlets.breathe()

        async def other() -> None:
            for _ in range(3):
                order.append("served")
                await asyncio.sleep(0)

        await asyncio.gather(greenlets.run(compute), other())
        return order

    assert asyncio.run(main()) == ["computed", "served"] * 3
    # Without a loop, as in commands, there is nobody to let run.
    greenlets.breathe()
