"""How much carbon electricity carries: yearly means by country, region and cloud zone, with their sources and years.

Grams of CO2eq a kWh. Countries are by ISO 3166 codes of three letters, regions by those of their parts (US-VA), cloud
zones by the names their providers give them. The sources do not count alike: see their words.
"""

from difflib import get_close_matches
from functools import cache
from typing import NamedTuple

from llamactl.errors import Fault

# Left out: what is older, countries that generate less than 1 TWh, whose figures are rounded, and Turkmenistan and
# Uzbekistan, whose figures are above 1,100 g from gas alone.
WORLD = "Our World in Data, of Ember: lifecycle emissions of what is generated in the country"
COUNTRIES_2023 = {
    "ARG": ("Argentina", 354.1), "AUS": ("Australia", 548.7), "AUT": ("Austria", 110.8), "BEL": ("Belgium", 138.1),
    "BGD": ("Bangladesh", 691.4), "BGR": ("Bulgaria", 335.3), "BIH": ("Bosnia and Herzegovina", 600.0),
    "BOL": ("Bolivia", 531.7), "BRA": ("Brazil", 98.3), "CAN": ("Canada", 170.0), "CHE": ("Switzerland", 34.8),
    "CHL": ("Chile", 291.1), "CHN": ("China", 582.3), "COL": ("Colombia", 259.5), "CRI": ("Costa Rica", 53.4),
    "CYP": ("Cyprus", 534.3), "CZE": ("Czechia", 449.7), "DEU": ("Germany", 380.9), "DNK": ("Denmark", 151.7),
    "ECU": ("Ecuador", 150.2), "EGY": ("Egypt", 570.3), "ESP": ("Spain", 174.1), "EST": ("Estonia", 416.7),
    "FIN": ("Finland", 79.2), "FRA": ("France", 56.0), "GBR": ("United Kingdom", 237.6), "GEO": ("Georgia", 167.6),
    "GRC": ("Greece", 336.6), "HRV": ("Croatia", 205.0), "HUN": ("Hungary", 204.2), "IND": ("India", 713.4),
    "IRL": ("Ireland", 290.8), "IRN": ("Iran", 655.1), "ITA": ("Italy", 330.7), "JPN": ("Japan", 485.4),
    "KAZ": ("Kazakhstan", 821.4), "KEN": ("Kenya", 70.5), "KOR": ("South Korea", 430.6), "KWT": ("Kuwait", 649.2),
    "LTU": ("Lithuania", 160.1), "LUX": ("Luxembourg", 105.3), "LVA": ("Latvia", 123.2), "MAR": ("Morocco", 630.0),
    "MDA": ("Moldova", 643.5), "MEX": ("Mexico", 507.2), "MKD": ("North Macedonia", 565.3), "MLT": ("Malta", 459.1),
    "MMR": ("Myanmar", 398.9), "MNE": ("Montenegro", 417.1), "MNG": ("Mongolia", 775.3), "NGA": ("Nigeria", 523.2),
    "NLD": ("Netherlands", 267.6), "NOR": ("Norway", 30.1), "NZL": ("New Zealand", 112.8), "OMN": ("Oman", 564.6),
    "PAK": ("Pakistan", 440.6), "PER": ("Peru", 266.5), "PHL": ("Philippines", 610.7), "POL": ("Poland", 661.9),
    "PRT": ("Portugal", 165.6), "PRY": ("Paraguay", 23.8), "QAT": ("Qatar", 602.5), "ROU": ("Romania", 240.6),
    "RUS": ("Russia", 441.0), "SGP": ("Singapore", 470.8), "SLV": ("El Salvador", 271.5), "SRB": ("Serbia", 636.1),
    "SVK": ("Slovakia", 116.8), "SVN": ("Slovenia", 231.3), "SWE": ("Sweden", 40.7), "THA": ("Thailand", 549.6),
    "TUN": ("Tunisia", 564.0), "TUR": ("Turkey", 464.6), "TWN": ("Taiwan", 642.4), "URY": ("Uruguay", 128.8),
    "USA": ("United States", 369.5), "VNM": ("Vietnam", 475.4), "ZAF": ("South Africa", 707.7),
}  # fmt: skip
COUNTRIES_2022 = {
    "AGO": ("Angola", 174.7), "ALB": ("Albania", 24.3), "ARE": ("United Arab Emirates", 561.1),
    "ARM": ("Armenia", 264.5), "AZE": ("Azerbaijan", 671.4), "BEN": ("Benin", 584.1), "BHR": ("Bahrain", 904.6),
    "BHS": ("Bahamas", 660.1), "BLR": ("Belarus", 441.7), "BRB": ("Barbados", 605.5), "BRN": ("Brunei", 893.9),
    "BTN": ("Bhutan", 23.3), "BWA": ("Botswana", 847.9), "CIV": ("Cote d'Ivoire", 393.9), "CMR": ("Cameroon", 305.4),
    "COD": ("Democratic Republic of Congo", 24.5), "COG": ("Congo", 700.0), "CUB": ("Cuba", 637.6),
    "DOM": ("Dominican Republic", 580.8), "DZA": ("Algeria", 634.6), "ETH": ("Ethiopia", 24.6), "FJI": ("Fiji", 288.5),
    "GAB": ("Gabon", 491.6), "GHA": ("Ghana", 484.0), "GIN": ("Guinea", 236.8), "GNQ": ("Equatorial Guinea", 591.8),
    "GTM": ("Guatemala", 328.3), "GUM": ("Guam", 622.9), "GUY": ("Guyana", 640.4), "HKG": ("Hong Kong", 699.5),
    "HND": ("Honduras", 282.3), "HTI": ("Haiti", 567.3), "IDN": ("Indonesia", 675.9), "IRQ": ("Iraq", 688.8),
    "ISL": ("Iceland", 27.7), "ISR": ("Israel", 582.9), "JAM": ("Jamaica", 555.6), "JOR": ("Jordan", 540.9),
    "KGZ": ("Kyrgyzstan", 147.3), "KHM": ("Cambodia", 417.7), "LAO": ("Laos", 265.5), "LBN": ("Lebanon", 599.0),
    "LBY": ("Libya", 818.7), "LKA": ("Sri Lanka", 509.8), "MDG": ("Madagascar", 436.4), "MLI": ("Mali", 408.0),
    "MOZ": ("Mozambique", 135.6), "MRT": ("Mauritania", 464.7), "MUS": ("Mauritius", 632.5), "MWI": ("Malawi", 66.7),
    "MYS": ("Malaysia", 605.8), "NAM": ("Namibia", 59.3), "NCL": ("New Caledonia", 660.6), "NIC": ("Nicaragua", 265.1),
    "NPL": ("Nepal", 24.4), "PAN": ("Panama", 161.7), "PNG": ("Papua New Guinea", 507.2),
    "PRI": ("Puerto Rico", 678.7), "PRK": ("North Korea", 389.6), "SAU": ("Saudi Arabia", 706.8),
    "SDN": ("Sudan", 263.2), "SEN": ("Senegal", 511.6), "SUR": ("Suriname", 349.3), "SYR": ("Syria", 701.7),
    "TJK": ("Tajikistan", 116.9), "TTO": ("Trinidad and Tobago", 681.5), "TZA": ("Tanzania", 339.2),
    "UGA": ("Uganda", 44.5), "UKR": ("Ukraine", 259.7), "VEN": ("Venezuela", 185.8), "YEM": ("Yemen", 566.1),
    "ZMB": ("Zambia", 112.0), "ZWE": ("Zimbabwe", 297.9),
}  # fmt: skip

EPA = "US EPA, eGRID2023 rev. 2 (STC2ERTA): emissions of what is generated in the state"
STATES_2023 = {
    "US-AK": ("Alaska", 369.4), "US-AL": ("Alabama", 323.9), "US-AR": ("Arkansas", 452.9), "US-AZ": ("Arizona", 312.6),
    "US-CA": ("California", 179.1), "US-CO": ("Colorado", 494.9), "US-CT": ("Connecticut", 245.2),
    "US-DC": ("District of Columbia", 179.2), "US-DE": ("Delaware", 319.4), "US-FL": ("Florida", 357.9),
    "US-GA": ("Georgia", 325.4), "US-HI": ("Hawaii", 632.6), "US-IA": ("Iowa", 287.6), "US-ID": ("Idaho", 142.4),
    "US-IL": ("Illinois", 215.2), "US-IN": ("Indiana", 664.7), "US-KS": ("Kansas", 332.6),
    "US-KY": ("Kentucky", 792.4), "US-LA": ("Louisiana", 346.1), "US-MA": ("Massachusetts", 376.5),
    "US-MD": ("Maryland", 236.9), "US-ME": ("Maine", 143.7), "US-MI": ("Michigan", 361.7),
    "US-MN": ("Minnesota", 341.3), "US-MO": ("Missouri", 659.8), "US-MS": ("Mississippi", 375.7),
    "US-MT": ("Montana", 482.6), "US-NC": ("North Carolina", 284.1), "US-ND": ("North Dakota", 588.7),
    "US-NE": ("Nebraska", 465.3), "US-NH": ("New Hampshire", 125.3), "US-NJ": ("New Jersey", 213.3),
    "US-NM": ("New Mexico", 350.9), "US-NV": ("Nevada", 292.0), "US-NY": ("New York", 211.7), "US-OH": ("Ohio", 484.6),
    "US-OK": ("Oklahoma", 294.3), "US-OR": ("Oregon", 165.5), "US-PA": ("Pennsylvania", 293.9),
    "US-RI": ("Rhode Island", 381.0), "US-SC": ("South Carolina", 254.2), "US-SD": ("South Dakota", 152.2),
    "US-TN": ("Tennessee", 299.9), "US-TX": ("Texas", 349.8), "US-UT": ("Utah", 644.7), "US-VA": ("Virginia", 244.8),
    "US-VT": ("Vermont", 23.7), "US-WA": ("Washington", 120.9), "US-WI": ("Wisconsin", 527.8),
    "US-WV": ("West Virginia", 893.1), "US-WY": ("Wyoming", 831.6),
}  # fmt: skip

MEE = "China's Ministry of Ecology and Environment, announcement 47 of 2025: CO2 alone, of what is used in the province"
PROVINCES_2023 = {
    "CN-AH": ("Anhui", 655.3), "CN-BJ": ("Beijing", 555.4), "CN-CQ": ("Chongqing", 558.1), "CN-FJ": ("Fujian", 421.1),
    "CN-GD": ("Guangdong", 441.9), "CN-GS": ("Gansu", 447.1), "CN-GX": ("Guangxi", 447.6), "CN-GZ": ("Guizhou", 568.3),
    "CN-HA": ("Henan", 589.7), "CN-HB": ("Hubei", 404.4), "CN-HE": ("Hebei", 651.6), "CN-HI": ("Hainan", 364.8),
    "CN-HL": ("Heilongjiang", 522.9), "CN-HN": ("Hunan", 497.6), "CN-JL": ("Jilin", 467.1),
    "CN-JS": ("Jiangsu", 582.7), "CN-JX": ("Jiangxi", 583.6), "CN-LN": ("Liaoning", 487.8),
    "CN-NM": ("Inner Mongolia", 647.9), "CN-NX": ("Ningxia", 618.7), "CN-QH": ("Qinghai", 179.6),
    "CN-SC": ("Sichuan", 156.4), "CN-SD": ("Shandong", 619.1), "CN-SH": ("Shanghai", 573.7),
    "CN-SN": ("Shaanxi", 633.5), "CN-SX": ("Shanxi", 663.4), "CN-TJ": ("Tianjin", 679.6), "CN-XJ": ("Xinjiang", 602.1),
    "CN-YN": ("Yunnan", 133.3), "CN-ZJ": ("Zhejiang", 497.4),
}  # fmt: skip

GOOGLE = "Google, region-carbon-info: emissions of the grid, hour by hour, without what Google itself has contracted"
GOOGLE_2025 = {
    "africa-south1": ("Johannesburg", 641.4, "ZAF"), "asia-east1": ("Taiwan", 427.9, "TWN"),
    "asia-east2": ("Hong Kong", 488.5, "HKG"), "asia-northeast1": ("Tokyo", 449.2, "JPN"),
    "asia-northeast2": ("Osaka", 298.9, "JPN"), "asia-northeast3": ("Seoul", 359.1, "KOR"),
    "asia-south1": ("Mumbai", 598.5, "IND"), "asia-south2": ("Delhi", 472.6, "IND"),
    "asia-southeast1": ("Singapore", 365.7, "SGP"), "asia-southeast2": ("Jakarta", 587.8, "IDN"),
    "asia-southeast3": ("Bangkok", 364.7, "THA"), "australia-southeast1": ("Sydney", 468.3, "AUS"),
    "australia-southeast2": ("Melbourne", 415.9, "AUS"), "europe-central2": ("Warsaw", 498.6, "POL"),
    "europe-north1": ("Finland", 29.8, "FIN"), "europe-north2": ("Stockholm", 19.4, "SWE"),
    "europe-southwest1": ("Madrid", 95.8, "ESP"), "europe-west1": ("Belgium", 126.4, "BEL"),
    "europe-west2": ("London", 109.4, "GBR"), "europe-west3": ("Frankfurt", 275.8, "DEU"),
    "europe-west4": ("Eemshaven", 194.3, "NLD"), "europe-west6": ("Zürich", 21.2, "CHE"),
    "europe-west8": ("Milan", 202.0, "ITA"), "europe-west9": ("Paris", 15.8, "FRA"),
    "europe-west10": ("Berlin", 275.8, "DEU"), "europe-west12": ("Turin", 202.0, "ITA"),
    "me-central1": ("Doha", 370.0, "QAT"), "me-central2": ("Dammam", 381.3, "SAU"),
    "me-west1": ("Tel Aviv", 380.9, "ISR"), "northamerica-northeast1": ("Montréal", 11.4, "CAN"),
    "northamerica-northeast2": ("Toronto", 74.2, "CAN"), "northamerica-south1": ("Mexico", 293.2, "MEX"),
    "southamerica-east1": ("São Paulo", 73.2, "BRA"), "southamerica-west1": ("Santiago", 209.9, "CHL"),
    "us-central1": ("Iowa", 431.9, "USA"), "us-central2": ("Oklahoma", 417.4, "USA"),
    "us-east1": ("South Carolina", 579.4, "USA"), "us-east2": ("Georgia", 391.2, "USA"),
    "us-east4": ("Northern Virginia", 343.5, "USA"), "us-east5": ("Columbus", 343.5, "USA"),
    "us-east7": ("Alabama and Tennessee", 339.9, "USA"), "us-south1": ("Dallas", 299.1, "USA"),
    "us-west1": ("Oregon", 97.8, "USA"), "us-west2": ("Los Angeles", 149.9, "USA"),
    "us-west3": ("Salt Lake City", 567.5, "USA"), "us-west4": ("Las Vegas", 360.0, "USA"),
}  # fmt: skip

# What the zones of the others lie in: the region of a figure that is known, else the country.
AWS = {
    "us-east-1": "US-VA", "us-east-2": "US-OH", "us-west-1": "US-CA", "us-west-2": "US-OR",
    "ca-central-1": "northamerica-northeast1", "mx-central-1": "MEX", "sa-east-1": "BRA", "eu-west-1": "IRL",
    "eu-west-2": "GBR", "eu-west-3": "FRA", "eu-central-1": "DEU", "eu-central-2": "CHE", "eu-north-1": "SWE",
    "eu-south-1": "ITA", "eu-south-2": "ESP", "ap-northeast-1": "asia-northeast1", "ap-northeast-2": "KOR",
    "ap-northeast-3": "asia-northeast2", "ap-south-1": "IND", "ap-south-2": "IND", "ap-southeast-1": "SGP",
    "ap-southeast-2": "australia-southeast1", "ap-southeast-3": "IDN", "ap-southeast-4": "australia-southeast2",
    "ap-southeast-5": "MYS", "ap-southeast-7": "THA", "ap-east-1": "asia-east2", "af-south-1": "ZAF",
    "me-south-1": "BHR", "me-central-1": "ARE", "il-central-1": "ISR", "cn-north-1": "CN-BJ",
    "cn-northwest-1": "CN-NX",
}  # fmt: skip
AZURE = {
    "eastus": "US-VA", "eastus2": "US-VA", "centralus": "US-IA", "northcentralus": "US-IL", "southcentralus": "US-TX",
    "westcentralus": "US-WY", "westus": "US-CA", "westus2": "US-WA", "westus3": "US-AZ",
    "canadacentral": "northamerica-northeast2", "canadaeast": "northamerica-northeast1", "mexicocentral": "MEX",
    "brazilsouth": "BRA", "chilecentral": "CHL", "northeurope": "IRL", "westeurope": "NLD", "uksouth": "GBR",
    "ukwest": "GBR", "francecentral": "FRA", "francesouth": "FRA", "germanywestcentral": "DEU", "germanynorth": "DEU",
    "switzerlandnorth": "CHE", "switzerlandwest": "CHE", "norwayeast": "NOR", "norwaywest": "NOR",
    "swedencentral": "SWE", "polandcentral": "POL", "italynorth": "ITA", "spaincentral": "ESP", "austriaeast": "AUT",
    "belgiumcentral": "BEL", "southeastasia": "SGP", "eastasia": "asia-east2", "japaneast": "asia-northeast1",
    "japanwest": "asia-northeast2", "koreacentral": "KOR", "koreasouth": "KOR",
    "australiaeast": "australia-southeast1", "australiasoutheast": "australia-southeast2", "newzealandnorth": "NZL",
    "centralindia": "IND", "southindia": "IND", "westindia": "IND", "indonesiacentral": "IDN", "malaysiawest": "MYS",
    "southafricanorth": "ZAF", "southafricawest": "ZAF", "uaenorth": "ARE", "qatarcentral": "QAT",
    "israelcentral": "ISR",
}  # fmt: skip


class Grid(NamedTuple):
    """Where the electricity comes from."""

    code: str  # as it was asked for: FRA, US-VA, europe-west9, us-east-1, eastus; "" where only a figure was given
    name: str
    grams: float  # of CO2eq a kWh
    source: str
    year: int | None = None
    country: str = ""  # ISO3
    provider: str = ""  # of a cloud zone: gcp, aws, azure

    @property
    def kg(self) -> float:
        """Of CO2eq a kWh."""
        return self.grams / 1000

    def __str__(self) -> str:
        made = f"{self.name}, {self.year}" if self.year else self.name
        return f"{self.grams:g} g/kWh: {made} ({self.source})" if self.source else f"{self.grams:g} g/kWh: {made}"


@cache
def grids() -> dict[str, Grid]:
    """All that are known, by their codes in lower case."""
    rows = [
        Grid(code, name, grams, WORLD, year, code)
        for year, table in ((2023, COUNTRIES_2023), (2022, COUNTRIES_2022))
        for code, (name, grams) in table.items()
    ]
    for source, parts in ((EPA, STATES_2023), (MEE, PROVINCES_2023)):
        country = "USA" if source is EPA else "CHN"
        rows += [Grid(code, name, grams, source, 2023, country) for code, (name, grams) in parts.items()]
    rows += [Grid(code, name, grams, GOOGLE, 2025, at, "gcp") for code, (name, grams, at) in GOOGLE_2025.items()]
    found = {row.code.lower(): row for row in rows}
    for provider, zones in (("aws", AWS), ("azure", AZURE)):
        found |= {zone: found[place.lower()]._replace(code=zone, provider=provider) for zone, place in zones.items()}
    return found


def grid(code: str) -> Grid:
    """A grid by its code; raises Fault with the nearest there are."""
    known = grids()
    if found := known.get(code.lower()):
        return found
    names = {one.name.lower(): one for one in known.values() if not one.provider}
    initials = {"".join(word[0] for word in name.split()): one for name, one in names.items()}  # UK, US
    said = names | known | ({code.lower(): initials[code.lower()]} if code.lower() in initials else {})
    close = [name for name in names if len(code) > 2 and name.startswith(code.lower())]
    close += get_close_matches(code.lower(), said, 3, 0.5)
    nearest = dict.fromkeys(f"{said[name].code} ({said[name].name})" for name in close[:3])
    remedy = f"the nearest are {', '.join(nearest)}" if nearest else "see llamactl carbon --tables"
    raise Fault("--country", f"no grid is known as {code!r}", f"{remedy}; or give --intensity")
