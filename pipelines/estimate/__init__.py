"""What a run will cost before anything is rented: steps, FLOPs, memory, hours and dollars, and what each rests on.

One direction: ``volume`` (how much there is to compute) and ``work`` (what a token costs) give ``memory`` and, with a
measured ``throughput`` file, ``hours``; ``forecast`` puts them together and ``show`` prints them.
"""
