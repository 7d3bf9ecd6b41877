"""Plain facts for multiple choice. Distractors are drawn from the same relation's other answers."""

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    return dict(part.strip().split("=") for part in text.replace("\n", " ").split(";") if part.strip())


CAPITALS = _pairs(
    """France=Paris; Italy=Rome; Spain=Madrid; Germany=Berlin; Japan=Tokyo; China=Beijing; Russia=Moscow; Egypt=Cairo;
    Greece=Athens; Portugal=Lisbon; Austria=Vienna; Ireland=Dublin; Norway=Oslo; Sweden=Stockholm; Finland=Helsinki;
    Denmark=Copenhagen; Poland=Warsaw; Hungary=Budapest; Cuba=Havana; Canada=Ottawa; Kenya=Nairobi; Peru=Lima;
    Thailand=Bangkok; Belgium=Brussels; Iran=Tehran; Iraq=Baghdad; Chile=Santiago; Argentina=Buenos Aires;
    Indonesia=Jakarta; Australia=Canberra; Romania=Bucharest; Bulgaria=Sofia; Lebanon=Beirut; Syria=Damascus;
    Vietnam=Hanoi; England=London; Scotland=Edinburgh; Ukraine=Kyiv; Venezuela=Caracas; Colombia=Bogota"""
)
CONTINENTS = _pairs(
    """France=Europe; Italy=Europe; Poland=Europe; Greece=Europe; Sweden=Europe; Germany=Europe; Japan=Asia; China=Asia;
    India=Asia; Thailand=Asia; Vietnam=Asia; Nepal=Asia; Egypt=Africa; Kenya=Africa; Nigeria=Africa; Ghana=Africa;
    Morocco=Africa; Ethiopia=Africa; Brazil=South America; Peru=South America; Chile=South America;
    Argentina=South America; Bolivia=South America; Colombia=South America; Canada=North America;
    Mexico=North America; Norway=Europe; Uganda=Africa; Mongolia=Asia; Ecuador=South America"""
)
OPPOSITES = _pairs(
    """hot=cold; big=small; tall=short; fast=slow; happy=sad; early=late; old=young; hard=soft; light=dark; full=empty;
    open=closed; wet=dry; rich=poor; strong=weak; good=bad; up=down; left=right; near=far; day=night; love=hate;
    war=peace; win=lose; buy=sell; push=pull; begin=end; clean=dirty; deep=shallow; thick=thin; loud=quiet; wide=narrow;
    true=false; first=last; inside=outside; above=below; alive=dead; safe=dangerous; easy=difficult; heavy=light;
    sweet=sour; smooth=rough; black=white; remember=forget; accept=refuse; success=failure; always=never"""
)
CATEGORIES = _pairs(
    """apple=fruit; banana=fruit; orange=fruit; pear=fruit; grape=fruit; mango=fruit; cherry=fruit; peach=fruit;
    dog=animal; cat=animal; horse=animal; lion=animal; tiger=animal; elephant=animal; rabbit=animal; sheep=animal;
    red=color; blue=color; green=color; yellow=color; purple=color; pink=color; brown=color; hammer=tool; saw=tool;
    wrench=tool; screwdriver=tool; drill=tool; car=vehicle; bus=vehicle; truck=vehicle; bicycle=vehicle; train=vehicle;
    piano=instrument; violin=instrument; guitar=instrument; flute=instrument; trumpet=instrument; drum=instrument;
    chair=furniture; table=furniture; sofa=furniture; bed=furniture; desk=furniture; shirt=clothing; jacket=clothing;
    trousers=clothing; sweater=clothing; skirt=clothing; rose=flower; tulip=flower; daisy=flower; lily=flower;
    carrot=vegetable; cabbage=vegetable; onion=vegetable; spinach=vegetable; broccoli=vegetable; eagle=bird;
    sparrow=bird; parrot=bird; owl=bird; salmon=fish; trout=fish; shark=fish; tuna=fish; Monday=day; Friday=day;
    Sunday=day; January=month; March=month; August=month; gold=metal; iron=metal; copper=metal; silver=metal;
    football=sport; tennis=sport; basketball=sport; hockey=sport; bee=insect; ant=insect; mosquito=insect"""
)
YOUNG = _pairs(
    """dog=puppy; cat=kitten; cow=calf; horse=foal; sheep=lamb; bear=cub; duck=duckling; hen=chick; deer=fawn;
    goat=kid; pig=piglet; kangaroo=joey; frog=tadpole; swan=cygnet; human=baby"""
)
PLURALS = _pairs(
    """child=children; man=men; woman=women; foot=feet; tooth=teeth; goose=geese; mouse=mice; knife=knives; leaf=leaves;
    wolf=wolves; city=cities; baby=babies; box=boxes; person=people; life=lives; wife=wives; half=halves; story=stories;
    country=countries; church=churches; tomato=tomatoes; hero=heroes; cactus=cacti; ox=oxen"""
)
PAST = _pairs(
    """go=went; eat=ate; see=saw; take=took; give=gave; come=came; run=ran; write=wrote; speak=spoke; buy=bought;
    think=thought; bring=brought; teach=taught; catch=caught; find=found; make=made; swim=swam; sing=sang; drink=drank;
    begin=began; drive=drove; break=broke; know=knew; fly=flew; grow=grew; throw=threw; sell=sold; tell=told; feel=felt;
    sleep=slept; keep=kept; lose=lost; win=won; build=built; send=sent; fall=fell; forget=forgot; choose=chose"""
)
PLACES = _pairs(
    """teacher=school; doctor=hospital; nurse=hospital; chef=restaurant; waiter=restaurant; farmer=farm; judge=court;
    librarian=library; sailor=ship; singer=theater; banker=bank; pilot=airplane; scientist=laboratory; soldier=army;
    baker=bakery; miner=mine; priest=church; cashier=shop; lifeguard=beach; gardener=garden; mechanic=garage"""
)
USES = _pairs(
    """knife=cutting; pen=writing; stove=cooking; broom=sweeping; soap=washing; shovel=digging;
    telescope=looking at stars; thermometer=measuring temperature; clock=telling time;
    raincoat=staying dry; key=opening locks; bed=sleeping;
    camera=taking photos; phone=calling people; lamp=giving light; needle=sewing; cup=drinking; spoon=eating soup;
    map=finding the way; refrigerator=keeping food cold; scissors=cutting paper; ladder=climbing; net=catching fish"""
)
LANGUAGES = _pairs(
    """France=French; Germany=German; Italy=Italian; Japan=Japanese; China=Chinese; Russia=Russian; Brazil=Portuguese;
    Mexico=Spanish; Greece=Greek; Turkey=Turkish; Poland=Polish; Sweden=Swedish; Norway=Norwegian; Finland=Finnish;
    Hungary=Hungarian; Denmark=Danish; Egypt=Arabic; Vietnam=Vietnamese; Thailand=Thai; Argentina=Spanish;
    Israel=Hebrew; Iran=Persian; England=English"""
)

#: relation → (facts, the answer's sentence of key and value, training wordings, held-out wordings of the key).
RELATIONS: dict[str, tuple[dict[str, str], str, tuple[str, ...], tuple[str, ...]]] = {
    "capital": (
        CAPITALS,
        "The capital of {} is {}.",
        ("What is the capital of {}?", "Name the capital city of {}."),
        ("Which city is the capital of {}?", "{} has which city as its capital?"),
    ),
    "continent": (
        CONTINENTS,
        "{} is in {}.",
        ("On which continent is {}?", "Name the continent where {} lies."),
        ("{} is a country in which continent?", "Which continent is {} part of?"),
    ),
    "opposite": (
        OPPOSITES,
        'The opposite of "{}" is "{}".',
        ('What is the opposite of "{}"?', 'Give a word that means the opposite of "{}".'),
        ('Which word is the antonym of "{}"?', 'If something is not "{}", what is its opposite?'),
    ),
    "category": (
        CATEGORIES,
        "{}: a type of {}.",
        ('What kind of thing is "{}"?', 'Which category does "{}" belong to?'),
        ('The word "{}" names a type of what?', 'What is "{}" an example of?'),
    ),
    "young": (
        YOUNG,
        "A young {} is called a {}.",
        ("What is a young {} called?", "Name the young of a {}."),
        ("What do we call a baby {}?", "Which word names the offspring of a {}?"),
    ),
    "plural": (
        PLURALS,
        'The plural of "{}" is "{}".',
        ('What is the plural of "{}"?', 'Write the plural form of "{}".'),
        ("One {}, two of them are called what?", 'How do you say "{}" when there are many?'),
    ),
    "past": (
        PAST,
        'The past tense of "{}" is "{}".',
        ('What is the past tense of "{}"?', 'Write the simple past of the verb "{}".'),
        (
            "Today I {}. Yesterday I did the same: which verb form is right?",
            'Which form of "{}" is used for yesterday?',
        ),
    ),
    "place": (
        PLACES,
        "A {} works in a {}.",
        ("Where does a {} work?", "Name the place where a {} usually works."),
        ("In which place would you most likely meet a {}?", "A {} does the job in which place?"),
    ),
    "use": (
        USES,
        "A {} is used for {}.",
        ("What is a {} used for?", "Name the main use of a {}."),
        ("For what purpose do people have a {}?", "Why would somebody need a {}?"),
    ),
    "language": (
        LANGUAGES,
        "The language of {} is {}.",
        ("Which language is spoken in {}?", "Name the main language of {}."),
        ("People in {} mostly speak which language?", "What do most people in {} speak?"),
    ),
}
