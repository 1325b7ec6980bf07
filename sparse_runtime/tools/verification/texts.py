"""The sentences that verify() takes where it is given none: many lengths, subjects and scripts."""

from __future__ import annotations

SENTENCES = (
    "",
    "?",
    "Yes.",
    "Thank you!",
    "12:45",
    "snow",
    "The ferry leaves at noon.",
    "How do I reset my password?",
    "My card was charged twice for the same order.",
    "Please cancel my reservation for Friday evening.",
    "A heron stands motionless in the shallow water.",
    "two dogs chase one ball across the wet grass",
    "THE MEETING HAS BEEN MOVED TO ROOM 4B.",
    "The film starts slowly, but its last half hour is a small miracle.",
    "I would not recommend this blender: it leaks, it is loud, and it broke within a week.",
    "Water boils at a lower temperature on a mountain because the air pressure is lower there.",
    "Shares of the shipping company fell 7.3% after it lowered its forecast for the year.",
    "If the sample turns blue, repeat the measurement; otherwise record the value and stop.",
    "def area(radius): return 3.14159 * radius ** 2",
    "See https://example.org/docs?page=2#install for the second part of the instructions.",
    "La biblioteca abre a las nueve y cierra a las ocho.",
    "Der Zug nach Zürich fährt heute von Gleis sieben ab.",
    "Le café était déjà fermé quand nous sommes arrivés.",
    "Поезд прибывает через десять минут.",
    "图书馆星期天不开门。",
    "駅までどのくらいかかりますか。",
    "متى يفتح المتحف؟",
    "Great job 👍🎉 see you on Monday 😊",
    "naïve façade, 3 × 4 ≤ 12, π ≈ 3.14, 25 °C — ½ cup",
    "Antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis are words.",
    "The bridge was closed for repairs in early spring. Engineers had found hairline cracks in "
    "two of its supports, and although nobody was in danger, the city decided not to wait. "
    "Commuters were sent to the northern crossing, which added twenty minutes to most journeys.",
    "To make the dough, mix the flour, salt and yeast in a large bowl, then pour in the warm "
    "water and stir until no dry flour is left. Cover the bowl and let it rest overnight in a "
    "cool place. The next morning, fold it a few times, shape it into a round loaf, and leave it "
    "to rise once more while the oven heats. Bake it for forty minutes, until the crust is dark "
    "and the loaf sounds hollow when you knock on it.",
)
