"""The demo's prompts and arms: everyday questions of different lengths, each asked with and without constraints."""

ARMS: dict[str, str | None] = {
    "unconstrained": None,
    "entrace": (
        "Work by six rules. 1. Before anything else, name the constraints that the answer has to meet. "
        "2. Keep what is essential apart from what merely happens to come with it. "
        "3. Keep your reasoning apart from the output; only the output is the answer. "
        "4. Say how the answer can be verified. 5. Say what was traded for what. "
        "6. Then give the least text that meets the constraints, and stop."
    ),
}
"""Arm → system prompt; None sends none."""

PROMPTS: dict[str, str] = {
    "boiling": "At what temperature does water boil at sea level, in degrees Celsius?",
    "train": "A train leaves at 14:35 and arrives at 17:10. How long is the journey?",
    "rename": "Suggest a clearer name for a Python function called `do_stuff` that removes duplicate rows from a table.",
    "tides": "Why are there two high tides a day and not just one?",
    "bread": (
        "My bread comes out dense. I use 500 g of whole wheat flour, 300 g of water, 7 g of dry yeast and 10 g of salt, "
        "knead for four minutes and bake after half an hour. What should I change first?"
    ),
    "refund": (
        "Write a reply to this message from a customer: 'The lamp that I ordered on Monday arrived with a crack in its shade. "
        "I need it for a birthday on Saturday, so a replacement next week is of no use to me. Can you refund me, and may I keep "
        "the bulb?' We refund broken goods in full, and we do not need any part of the lamp back."
    ),
    "outage": (
        "Summarise for a manager what happened: At 09:02 the payment service began to time out. At 09:05 the on-call engineer "
        "was paged. At 09:20 she found that a new release had doubled the number of connections to the database, which "
        "then refused further ones. At 09:31 the release was rolled back and at 09:34 payments worked again. About 1,200 payments "
        "had failed; 1,150 of them were repeated by the customers themselves within the hour. A limit on connections per service is "
        "being added, and a test that counts connections will run before each release."
    ),
    "choice": (
        "We are three people with a small web shop and about forty orders a day. Our product list is a spreadsheet that "
        "two of us edit, and twice this month one overwrote the other's changes. Should we move the list to a database, or "
        "to a shared online spreadsheet, or agree on who edits when? We can spend a day on it, and none of us can program."
    ),
}
"""Name → what the user asks."""
