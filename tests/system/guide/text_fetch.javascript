// 文生图 - 正方形
const response = await fetch("http://localhost:8081/user/ai/tasks/submit", {
method: "POST",
headers: {
"Content-Type": "application/json",
"Authorization": `Bearer ${YOUR_JWT_TOKEN}`
},
body: JSON.stringify({
modelName: "sc_soraimg_text_1x1",
prompt: "科幻风格的未来城市,霓虹灯光,赛博朋克风格"
})
});
const result = await response.json();
console.log("任务编号:", result.data.taskNo);
console.log("任务状态:", result.data.status);
